"""What several tests use: folders, servers and models made on the spot."""
