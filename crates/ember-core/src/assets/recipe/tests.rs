use super::*;

#[test]
fn every_pack_that_is_brought_can_be_read() {
    for pack in ember_guest::packs::PACKS {
        let (recipe, text) = Recipe::find(pack.name).unwrap();
        assert_eq!(recipe.name, pack.name);
        assert_eq!(text, pack.recipe);
        assert!(!recipe.packages.is_empty());
        for language in &recipe.languages {
            assert!(!language.interpreter.is_empty(), "{}", language.name);
        }
    }
}

#[test]
fn an_unknown_pack_is_refused_with_those_that_there_are() {
    let text = Recipe::find("cobol").unwrap_err().to_string();
    assert!(text.contains("cobol") && text.contains("python"), "{text}");
}

#[test]
fn a_misspelt_field_is_refused() {
    let text = "name = \"x\"\npackages = []\ndropp = []\n";
    assert!(toml::from_str::<Recipe>(text).is_err());
}
