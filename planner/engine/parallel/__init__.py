"""How a trial's workers share its work."""
