"""Evaluation: measures of landmarks against annotation and against themselves, and the files of a report.

Points are `(x, y)` in pixels of the frame; a score of 0 means that the landmark was not found. Measures are NumPy on
the host, except for the views that `stability` warps on the device. They take arrays and do not depend on a method.

  protocol               choices under which landmarks are measured, and the id under which a number is reported
  protocols, chosen      the registry of published protocols; the protocol of a config on its data
  landmark_regression    forward and backward error; their results are in `scores`
  label_counts, curves   errors with fewer labelled images; cumulative errors, and errors of groups of images
  landmark_accuracy, correspondence, stability, pose_clusters    the other measures
  predictor              a stage's predictions, compiled once, without the modules above
  measure                all measures of a stage on a data set, as a `report.Report`
  report, pictures       the files of a report: numbers, tables, plots and contact sheets
  run                    evaluations during training and of a finished run
  dense                  the measures of dense features, `uld dense`
  alignment              keypoints carried from one photo to another, `uld align`
"""
