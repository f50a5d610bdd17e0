"""`octfm reconstruct`: what an autoencoder makes of single TRs, shown beside the truth and a constant."""
