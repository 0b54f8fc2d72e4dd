"""Planning a privacy budget: what noise a target needs, what it buys against an attacker, what it costs."""
