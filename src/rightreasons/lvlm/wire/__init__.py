"""What all backends that send requests share: permission, deadlines, pictures and failures."""
