import torch
from monai.networks.nets import SegResNet
from torch import nn

from sa_swin.study.baselines import ImageAlone, ImageAloneClassifier


def test_a_baseline_sees_the_image_and_not_its_counterpart():
    network = ImageAlone(SegResNet(init_filters=8, out_channels=2)).eval()
    pair = torch.randn(1, 2, 16, 16, 16)
    other = pair.clone()
    other[:, 1] = 0
    torch.testing.assert_close(network(pair), network.network(pair[:, :1]))
    torch.testing.assert_close(network(pair), network(other))


def test_a_classifying_baseline_gives_logits_to_train_and_calibrated_log_probabilities_to_read():
    network = ImageAloneClassifier(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 2)))
    pair = torch.randn(3, 2, 4, 4, 4)
    logits = network.train()(pair)
    assert logits.shape == (3, 2, 1)
    network.temperature.fill_(2.0)
    network.class_bias.copy_(torch.tensor([0.0, 0.5]))
    by_hand = logits[..., 0].log_softmax(1) / 2 + torch.tensor([0.0, 0.5])
    torch.testing.assert_close(network.eval()(pair), by_hand)
