"""Before a study starts: which settings fit a site's line, memory, hours and epsilon, and what each costs."""
