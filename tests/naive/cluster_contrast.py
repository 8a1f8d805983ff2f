"""Cluster Contrast, written from its description and without anything of gracl.learning.banks."""

import torch
import torch.nn.functional as F

from gracl.learning.losses import Terms


class ClusterContrast:
    """One bank of cluster means; each instance of the batch is mixed into its entry, one after the other."""

    def __init__(self, temperature=0.05, momentum=0.1):
        self.temperature, self.momentum = temperature, momentum

    def begin_epoch(self, assignment, device):
        self.bank = F.normalize(torch.tensor(assignment.proxies.cluster_sums), dim=1)

    def __call__(self, features, labels):
        loss = F.cross_entropy(features @ self.bank.T / self.temperature, labels)
        return Terms(loss=loss, inter=loss.detach(), intra=torch.zeros(()))

    @torch.no_grad()
    def update(self, features, labels):
        for row, label in zip(features, labels, strict=True):
            mixed = self.momentum * self.bank[label] + (1 - self.momentum) * row
            self.bank[label] = mixed / mixed.norm().clamp_min(1e-12)
