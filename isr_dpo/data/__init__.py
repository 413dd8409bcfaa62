"""From video files to lossless frames, and the demo world that draws its own videos."""
