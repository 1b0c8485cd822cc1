"""Teachers of a student: trained networks, what they say of all samples, and what they hand on."""
