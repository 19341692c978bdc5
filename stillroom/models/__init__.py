"""Networks: those that papers contribute, and the small ones of the trials."""
