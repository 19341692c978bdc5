"""What methods share: pure torch, knowing neither Run nor recipes."""
