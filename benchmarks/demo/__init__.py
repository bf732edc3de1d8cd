"""How well the demo model's further networks do."""
