import os

import torch

# Files of tests run side by side, and threads that wait for a busy processor take far longer.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
