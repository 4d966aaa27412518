"""Model files: names under model folders, open files, their kinds, and modules built from them."""
