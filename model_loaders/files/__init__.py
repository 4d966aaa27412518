"""What is on the disk: names under model folders, open files, what they hold, and modules filled from them."""
