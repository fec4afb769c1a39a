"""From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels and Meta Co-Training."""
