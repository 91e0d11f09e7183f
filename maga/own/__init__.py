"""Your own model and your own data: what forgets, and what audits."""
