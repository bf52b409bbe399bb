"""What a bundle's answers are worth, image by image: prediction sets, abstaining, images unlike the known ones."""
