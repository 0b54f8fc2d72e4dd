"""SECRET KEY AND PLAINTEXT: the only package that decrypts or sees a site's data."""
