"""How much each prediction is worth: a rule in each file."""
