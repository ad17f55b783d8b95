// Whether a theme looks like another language than English, by its small words and its letters: enough for a quiet word.

const set = (words) => new Set(words.split(/\s+/));
const ENGLISH = set("the of my and to on with for who that are your our his from by when not");
const BORROWED = set("café cafés déjà naïve fiancé fiancée façade piñata jalapeño crème brûlée résumé soufflé mâché");
const IN_NAMES = set("da de del della der di du el la las le los von");  // Rio de Janeiro
const FOREIGN = set(`aan als amor amore amour auf aux avec bei bonheur da das de dein del della der des di du een eerste ein eine
  einem einen einer el est gato heimweh herbst het hiver hund ich il ist je katze la las le leben les liebe los
  madre mar maten mein meine meiner mer mes mi mia mijn minha mit mon morte mutter naar nacht neige nel nella
  nicht niet noche notte nuit och otoño para pero primavera primeira que saudade schnee sobre soledad sommer sul
  tu una und une uno unser vida vie vom von voor wald zum zur`);

export const isForeign = (theme) => {
  const words = theme.match(/[\p{L}\p{M}]+/gu) ?? [];
  const small = words.map((word) => word.slice(0, 1).toLowerCase() + word.slice(1));
  const capital = (word = "") => /^\p{Lu}/u.test(word);
  if (words.some((word) => !/^[\p{Script=Latin}\p{M}]+$/u.test(word))) return true;
  const odd = small.filter((word, i) => (IN_NAMES.has(word) && capital(words[i + 1]) ? false
    : FOREIGN.has(word) || (/[^a-z]/i.test(word) && !BORROWED.has(word) && !capital(words[i]))));
  return odd.length > 0 && !small.some((word) => ENGLISH.has(word) && !FOREIGN.has(word));
};
