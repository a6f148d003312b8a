"""One paper, one file; the stages of a paper are classes in it."""
