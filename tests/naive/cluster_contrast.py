"""Cluster Contrast, written from its description and without anything of gracl.learning.banks."""

import torch
import torch.nn.functional as F

from gracl.learning.losses import Terms


class ClusterContrast:
    """One bank of cluster means; each instance of the batch is mixed into its entry, one after the other."""

    def __init__(self, temperature=0.05, momentum=0.1):
        self.temperature, self.momentum = temperature, momentum

    def begin_epoch(self, assignment, device):
        self.labels = torch.tensor(assignment.labels)
        self.bank = F.normalize(torch.tensor(assignment.proxies.cluster_sums), dim=1)

    def __call__(self, features, images):
        labels = self.labels[images]
        loss = F.cross_entropy(features @ self.bank.T / self.temperature, labels)
        return Terms(loss, loss.detach(), *torch.zeros(3))

    @torch.no_grad()
    def update(self, features, images):
        for row, label in zip(features, self.labels[images], strict=True):
            mixed = self.momentum * self.bank[label] + (1 - self.momentum) * row
            self.bank[label] = mixed / mixed.norm().clamp_min(1e-12)

    def moved(self):
        return {"bank": self.bank}

    def take_up(self, moved):
        self.bank = moved["bank"].clone()
