"""How a request travels: permission, deadlines, pictures and failures."""
