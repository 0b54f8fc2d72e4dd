"""SECRET KEY AND PLAINTEXT: what a site's own process does with its keys, its records and its updates."""
