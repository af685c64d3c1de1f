import pytest
import torch
from rumfast import TrainConfig, load_dataset
from rumfast.training import Learner
import time

def recipe(**fields):
    return TrainConfig(**({"arch": "resnet8", "width": 8, "epochs": 5, "batch_size": 16, "precision": "fp32", "compile": "off"} | fields))

@pytest.fixture(scope="module")
def small():
    return load_dataset("digits").take(64, 16)

def test_fit(cuda, small):
    t=time.time(); L = Learner(small, recipe(), "cuda"); print(time.time()-t)
    ids=torch.arange(60).to("cuda")
    for seed in (0,1):
        t=time.time(); L.fit(ids, seed); print(time.time()-t)
        print(cuda.waits); cuda.waits.clear()
    P = Learner(small, recipe(), "cpu")
    for seed in (0,1):
        t=time.time(); P.fit(torch.arange(60), seed); print(time.time()-t)
    for (k,a),b in zip(L.model.state_dict().items(), P.model.state_dict().values()):
        print(k, type(a), (a.cpu()-b).abs().max() if a.ndim else (a.cpu(), b))
