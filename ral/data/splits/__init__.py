"""Who trains, who validates, who tests, and who is set apart: all by patient."""
