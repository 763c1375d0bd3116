"use strict";
// Draws the figures in the colours of the page's scheme, again when it changes, and shows tokens' numbers.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".chart")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  let printed = false;

  // The value of a CSS variable, with an opacity if one is given.
  function shade(name, opacity) {
    const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    if (opacity === undefined) return value;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${opacity})`;
  }

  // A copy of traces or layout in which theme:3 is the fourth colour of the palette, theme:bad that of bad news.
  function themed(value, key) {
    if (Array.isArray(value)) return value.map((each) => themed(each, key));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, themed(each, name)]));
    }
    if (typeof value === "string" && /color$/.test(key) && value.startsWith("theme:")) {
      const [name, opacity] = value.slice(6).split("/");
      return shade(/^\d$/.test(name) ? `c${name}` : name, opacity);
    }
    return value;
  }

  function axis(given, isVertical) {
    return Object.assign({
      automargin: true, gridcolor: shade("line"), linecolor: shade("line"), zerolinecolor: shade("muted"),
      zerolinewidth: 1, zeroline: false, tickcolor: shade("line"), fixedrange: isVertical || coarse,
    }, given, { title: Object.assign({ standoff: 8 }, given && given.title) });
  }

  function layoutOf(figure, width) {
    const given = themed(figure.layout);
    const names = figure.data.filter((trace) => trace.showlegend !== false && trace.name);
    const hasLegend = given.showlegend !== false && names.length > 1;
    const letters = names.reduce((sum, trace) => sum + Math.min(trace.name.length, 40) * 7 + 52, 0);
    const rows = hasLegend ? Math.max(1, Math.ceil(letters / Math.max(width - 70, 200))) : 0;
    return Object.assign({
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: shade("text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "x unified", dragmode: coarse ? false : "zoom", uirevision: "kept",
      hoverlabel: { bgcolor: shade("card"), bordercolor: shade("line"), font: { color: shade("text") } },
    }, given, {
      width, height: figure.height + rows * 20, margin: { l: 8, r: 12, t: 10 + rows * 20, b: 8, pad: 0 },
      showlegend: hasLegend,
      legend: { orientation: "h", traceorder: "normal", x: 0, xanchor: "left", xref: "container", y: 1, yanchor: "top", yref: "container",
                bgcolor: "rgba(0,0,0,0)", font: { size: 12 } },
      xaxis: axis(given.xaxis, false), yaxis: axis(given.yaxis, true),
    });
  }

  function draw() {
    for (const plot of plots) {
      const figure = figures[plot.dataset.figure];
      const width = printed ? Math.min(plot.clientWidth, 680) : plot.clientWidth;
      Plotly.react(plot, themed(figure.data), layoutOf(figure, width),
                   { displayModeBar: false, responsive: false, doubleClick: "reset" });
    }
  }

  let pending = 0;
  function drawSoon() {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(draw);
  }

  draw();
  document.documentElement.dataset.drawn = plots.length;
  dark.addEventListener("change", drawSoon);
  let known = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== known) { known = window.innerWidth; drawSoon(); }
  });
  const printing = window.matchMedia("print");
  printing.addEventListener("change", (event) => { printed = event.matches; draw(); });
  window.addEventListener("beforeprint", () => { printed = true; draw(); });
  window.addEventListener("afterprint", () => { printed = false; drawSoon(); });

  // Numbers of the token that is pointed at.
  const tooltip = document.getElementById("tooltip");
  let shown = null;
  function show(token) {
    if (shown) shown.classList.remove("shown");
    shown = token;
    tooltip.hidden = token === null;
    if (token === null) return;
    token.classList.add("shown");
    tooltip.textContent = `${JSON.stringify(token.textContent)}: ${token.dataset.details}`;
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tooltip.offsetWidth - 8);
    tooltip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tooltip.style.top = `${box.bottom + window.scrollY + 6}px`;
  }
  const tokenOf = (event) => (event.target instanceof Element ? event.target.closest("[data-details]") : null);
  document.addEventListener("pointerover", (event) => { if (event.pointerType === "mouse") show(tokenOf(event)); });
  document.addEventListener("click", (event) => show(tokenOf(event)));
})();
