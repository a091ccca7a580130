"""What a GPU settles: a module for each kind of question, a function for each step of plan.py."""
