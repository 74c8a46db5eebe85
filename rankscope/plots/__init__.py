"""Pictures of tables: they read DataFrames and compute nothing but means."""

from rankscope.plots.panels import count_pages as count_pages
from rankscope.plots.rank import figure_rank as figure_rank
from rankscope.plots.rank import plot_rank as plot_rank
from rankscope.plots.rank_map import figure_rank_map as figure_rank_map
from rankscope.plots.rank_map import plot_rank_map as plot_rank_map
from rankscope.plots.save import FIGURE_FORMATS as FIGURE_FORMATS
from rankscope.plots.save import figure_bytes as figure_bytes
from rankscope.plots.save import save_figure as save_figure
from rankscope.plots.similarity import plot_similarity as plot_similarity
from rankscope.plots.similarity_page import figure_similarity as figure_similarity
from rankscope.plots.spectrum import figure_spectrum as figure_spectrum
from rankscope.plots.spectrum import plot_spectrum as plot_spectrum
from rankscope.plots.style import KIND_COLORS as KIND_COLORS
from rankscope.plots.style import theme as theme
from rankscope.plots.tables import TableError as TableError
from rankscope.plots.tables import require_columns as require_columns
