"""FedAvg, in which all weights go down and up in every round, or, coded, all changes.

"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from utils.federated.exchange import ClientSide, Package, ServerSide


class FedAvgServer(ServerSide):
    """The server of FedAvg."""

    def _news(self) -> Package:
        return Package(self._told_of(self.live, self.live))

    def _everything(self, have: int | None) -> Package:
        return Package({"values": self.theta.copy()})


class FedAvgClient(ClientSide):
    """The client of FedAvg."""

    def _take_news(self, package: Package) -> None:
        self.theta = self._after(package.arrays, self.live)

    def _take_everything(self, package: Package) -> None:
        self.theta = package.arrays["values"].copy()
