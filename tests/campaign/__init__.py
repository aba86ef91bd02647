"""A campaign of faults against every command: nothing may be lost, wrong, or left behind.

``python -m tests.campaign`` runs the whole and writes its counts; ``test_campaign`` a short part.
"""
