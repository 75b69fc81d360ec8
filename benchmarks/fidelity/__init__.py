"""The measurements of credit_fidelity.py: each writes its raw numbers into a folder."""
