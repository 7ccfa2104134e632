"""What a monitor sees of a step: which tensors it watches, what it sums up of them, and what that says of laws."""
