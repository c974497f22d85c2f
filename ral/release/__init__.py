"""Deciding on, keeping and bringing back trained models: gate, registry and ledger."""
