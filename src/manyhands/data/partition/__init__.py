"""How images are distributed to silos: pure functions of labels, the number of silos and a random generator.

Each returns one array of image numbers for each silo. Together the arrays hold every image once, and none has fewer
than ``minimum``: a silo with fewer gets random images of the largest silo. Only ``by_attributes`` and ``lacking`` may
leave images out, and only ``by_attributes`` may give one image to several silos.
"""
