"""What a base model is: its modules, their shapes, and its digest."""
