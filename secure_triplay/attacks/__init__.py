"""What an adversary does with exactly what its threat model lets it observe."""
