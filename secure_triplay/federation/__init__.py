"""Folders and signed documents of sites and coordinator, and Flower's processes; a site's keys: `sitefolder`."""
