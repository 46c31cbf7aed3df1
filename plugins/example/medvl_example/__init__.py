"""Components of one's own for medvl."""
