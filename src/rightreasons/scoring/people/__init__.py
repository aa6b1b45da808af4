"""What a blind study of several people comes to: agreement with the LVLM and with each other."""
