"""Release management of trained models: gate, registry and ledger."""
