// TeX on pages (arithmatex) and in notebooks; nothing but this file and MathJax's one bundle is loaded.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"], ["$", "$"]],
    displayMath: [["\\[", "\\]"], ["$$", "$$"]],
    processEscapes: true,
  },
  options: {
    enableMenu: false,
    ignoreHtmlClass: ".*",
    processHtmlClass: "arithmatex|jp-RenderedMarkdown",
  },
};
