"""Evaluation: landmarks against annotation and against themselves, and what is written of it.

Points are `(x, y)` in pixels of the frame; a score of 0 means that the landmark was not found. Measures are NumPy on
the host, but for the views that `stability` warps on the device. None of them knows a method: they take arrays.

  protocol               choices under which landmarks are measured, and the id that a number is reported with
  landmark_regression    forward and backward error; their results are in `scores`
  label_counts, curves   errors with fewer labelled images; cumulative errors, and errors of groups of images
  landmark_accuracy, correspondence, stability, pose_clusters    the other measures
  predictor              a stage's predictions, compiled once; of all the above it needs nothing
  measure                all measures of a stage on a data set, as a `report.Report`
  report, pictures       what is written of a report: numbers, tables, plots and contact sheets
  run                    evaluations on the way and of a finished run
"""
