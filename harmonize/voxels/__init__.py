"""The mathematics of voxels: geometry, intensities, foreground and brain, without a file in sight."""
