"""Native models, one file for each framework, each in its framework's own idiom. The loops never look inside."""
