"""Small pure functions on arrays: coordinates, heatmaps, keypoints, warps, colour, ridge regression."""
