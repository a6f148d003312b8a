"""Semantic alignment: keypoints of a photo are carried to another photo of the same category (`Method.carry`).

pck          protocols, and the share of keypoints that are carried to the right place
pictures     a sheet of pairs with carried keypoints
run          the measure of a finished stage, and the files of its report (`uld align`)
"""
