"""From configs to objects: parsing, merging, building and error locations."""
