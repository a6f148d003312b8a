"""Evaluation of dense features (`Method.dense`), as DVE, ContrastLandmarks and LEAD measure them.

The features of an image are a pyramid, a tuple of maps [B,h_l,w_l,C_l]; resized to one size and concatenated they are
its hypercolumns (`ops.hypercolumns`), which are never formed.

  protocols     choices of the papers, and the ids of numbers
  features      views of photos, and a stage's features of them, compiled once
  matching      the place of a point of one image on another
  regression    landmarks from features by a regressor of virtual keypoints, with all labels or a few
  zoom          the regressor on objects that are smaller than in training
  parts         clusters of features
  pictures      sheets and plots
  run           all measures of a finished stage, and the files of its report
"""
