"""What attacks: broken pictures, hostile files, secrets that must not be written down, open doors."""
