"""What a blind study of several people comes to: agreement with the model and with each other."""
